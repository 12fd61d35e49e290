"""What experiments share: training, sweeps, run folders, optimizers, tables, looks.

steps.py          one training step, and the one loop over steps that all programs have
training.py       that loop with a run folder: interruptible, resumable
contest.py        the rules of a comparison: what chooses a rate is not reported
held_out.py       rows that nothing is trained on: to choose by, report, measure on
sweep.py          the search of a learning rate, and trainings at it
winners.py        what a sweep found: winners, the table of rates
swept.py          the rate that a committed sweep found on a task
statistics.py     intervals over seeds
curves.py         their loss curves, a band over the seeds for each
optimizers.py     the optimizers by name
directions.py     pseudo-updates of many optimizers on one trajectory
monitoring.py     diagnostics in a loop within a budget
run_folder.py     a run folder is claimed, described and read
provenance.py     which command, commit, software and device made numbers, and when
log.py            the append-only log of a run, one JSON object a line
files.py          files that are written whole or not at all
command_line.py   programs refuse with a sentence
tables.py         tables and reports in Markdown
looks.py          colours, line styles and names in figures
paper.py          what Pan and Li report
"""
