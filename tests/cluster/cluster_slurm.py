"""Slurm on the nodes of the cluster tests: munged and slurmctld on the first node, slurmd on both.

All files are in one temporary folder, and SLURM_CONF names the configuration.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from cluster_nodes import Node, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")

# The nodes declare more cores and GPUs than the machine has, so that the script's #SBATCH lines apply unchanged. A
# requeued job may start as soon as the credentials of its previous attempt have expired (cred_expire).
_CONFIGURATION = """
ClusterName=test
SlurmctldHost=n1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=30
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
NodeName=n[1-2] CPUs=32 RealMemory=1000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A Slurm cluster of two nodes; commands run on the first one."""

    def __init__(self, nodes: Sequence[Node], folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(bytes(range(256)) * 4)
        key.chmod(0o400)
        folder.chmod(0o755)
        for node in nodes:
            node.variables["SLURM_CONF"] = str(folder / "slurm.conf")

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        self._daemon(
            self.nodes[0], "munged", "--force", f"--socket={self.folder}/munge.socket",
            f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munge.pid",
            f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed",
        )  # fmt: skip
        self._daemon(self.nodes[0], "slurmctld")
        for node in self.nodes:
            self.start_slurmd(node)
        self.wait_idle()

    def start_slurmd(self, node: Node) -> None:
        self._daemon(node, "slurmd", "-N", node.name)

    def _daemon(self, node: Node, *words: str) -> None:
        done = node.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.logs()}"

    def wait_idle(self) -> None:
        """Wait until both nodes are idle."""
        until(lambda: self.command("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, 60, self.logs)

    def stop(self) -> None:
        """Kill the daemons with their job steps."""
        for node in self.nodes:
            node.kill("slurm")
        self.nodes[0].kill("munged")

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))

    def command(self, *words: str | Path) -> str:
        """Run one of Slurm's commands on the first node and return its output."""
        done = self.nodes[0].run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def submit(self, *words: str | Path) -> str:
        """Submit a job with `sbatch` and return its id."""
        return self.command("sbatch", "--parsable", *words).strip()

    def show(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.command("scontrol", "--oneliner", "show", "job", job)))

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def cancel_all(self) -> None:
        """Cancel all jobs and kill what they started."""
        self.command("scancel", "--user=root")
        for node in self.nodes:
            node.kill("pretrain.sh")
        deadline = time.monotonic() + 60
        while self.command("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
