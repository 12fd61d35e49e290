"""What is known of every row, and the file that it is in."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Row
from examples.lab import provenance

DONE = ("measured", "failed in part")
HERE = harness.RESULTS / "accelerator.json"


class Record:
    """One record of the file: that of a device and a preset.

    The status of a row is one of

    - measured
    - failed in part: others than the row itself, see what `failed` says
    - failed: it raised
    - skipped: for want of memory or time
    - cut off: it hung, its process died, or the time was up
    """

    def __init__(
        self,
        names: Sequence[str],
        preset: str,
        command: str,
        commit: str | None = None,
        path: Path | None = None,
    ):
        self.path, self.names, self.known = path, list(names), False
        self.rows: dict[str, Row] = {}
        self.content: Row = {
            "command": command,
            "commit": commit or provenance.commit(),
            "date": harness.Occasion.now().date,
            "preset": preset,
            "made_with": {"device": "unknown"},
            "rows": self.rows,
        }

    def choose(self, only: str, *, resume: bool) -> None:
        """Leaves out other rows, and those that the file has already."""
        chosen = [name for name in self.names if re.search(only, name)]
        if not chosen:
            raise ValueError(f"--only: expected part of a name of {self.names}.")
        self.names = chosen
        path = self.path or HERE
        if resume and path.is_file():
            for record in json.loads(path.read_text()).values():
                if record["preset"] == self.content["preset"]:
                    self.content["made_with"] = record["made_with"]
                    self.rows |= {
                        name: row
                        for name, row in record["rows"].items()
                        if row["status"] in DONE
                    }

    def waiting(self) -> list[str]:
        """The rows that nobody has tried."""
        return [name for name in self.names if "status" not in self.rows.get(name, {})]

    def note(self, message: Row) -> None:
        """Adds what a process said."""
        if "made_with" in message:
            self._know(message)
        elif "begins" in message:
            print(message["begins"], end=": ", flush=True)
            origin = {key: self.content[key] for key in ("commit", "date")}
            self.rows[message["begins"]] = origin
        elif "ends" in message:
            self.rows[message["ends"]]["seconds"] = message["seconds"]
            self._say(message["ends"])
        else:
            self.rows[message["row"]] |= {
                k: v for k, v in message.items() if k != "row"
            }
        self.save()

    def _know(self, message: Row) -> None:
        device = message["made_with"]["device"]
        if self.rows and self.content["made_with"]["device"] not in (device, "unknown"):
            other = self.content["made_with"]["device"]
            raise ValueError(f"--resume: the file is of {other}, and this is {device}.")
        self.known = True
        self.content |= {key: message[key] for key in ("platform", "made_with")}
        if self.path is None:
            real = message["platform"] != "cpu" and self.content["preset"] == "full"
            self.path = HERE if real else Path("runs/accelerator.json")

    def break_off(self, row: str | None, why: str) -> None:
        """The process is gone: the row is what it is, the others may go on."""
        if not self.known:
            self.close(f"The process that measures did not start. {why}")
        elif row is not None and "status" not in self.rows[row]:
            self.rows[row] |= {"status": "cut off", "why": why}
            self._say(row)
            self.save()

    def close(self, why: str) -> None:
        """Says of all rows that are left why nobody has tried them."""
        for name in self.waiting():
            began = name in self.rows
            status = "cut off" if began else "skipped"
            self.rows[name] = self.rows.get(name, {}) | {"status": status, "why": why}
        self.save()

    def _say(self, name: str) -> None:
        row = self.rows[name]
        print(f"{row['status']} ({row.get('seconds', 0):.0f} s).", row.get("why") or "")

    def save(self) -> None:
        if self.path is not None:
            harness.save(self.path, self.content, ("preset",))

    def show(self) -> None:
        """Prints the figures, and how many rows ended how."""
        console = harness.console()
        for name, row in self.rows.items():
            if row.get("figures"):
                console.print(harness.figures_table(name, row["figures"]))
        ended = [row["status"] for row in self.rows.values()]
        counts = [f"{ended.count(status)} {status}" for status in sorted(set(ended))]
        device = self.content["made_with"]["device"]
        console.print(f"{device}: {', '.join(counts)} ({self.path})")
