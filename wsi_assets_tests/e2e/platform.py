"""A running platform, webserver and daemon, as `wsi-assets ui` starts it, driven through GraphQL."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from wsi_assets_tests.ports import free_port

PATIENCE_SECONDS = 300

REPOSITORY = {"repositoryLocationName": "wsi_assets.definitions", "repositoryName": "__repository__"}


class Platform:
    """Folders for slides, annotations and storage below ``home``, and the servers on them."""

    def __init__(self, home: Path, poll_seconds: int = 2):
        self.home = home
        self.images, self.annotations = home / "images", home / "annotations"
        self.storage = home / "storage"
        for folder in (self.images, self.annotations):
            folder.mkdir(parents=True, exist_ok=True)
        self.poll_seconds = poll_seconds
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WSI_", "DAGSTER_", "MLFLOW"))}
        return {
            **kept,
            "WSI_POLL_SECONDS": str(self.poll_seconds),
            "OMP_NUM_THREADS": "1",
            "WSI_IMAGES_DIR": str(self.images),
            "WSI_ANNOTATIONS_DIR": str(self.annotations),
            "WSI_STORAGE_DIR": str(self.storage),
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "wsi_assets.cli", "ui", "--port", str(self.port)]
        with (self.home / "ui.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--mlflow-port", "0", "--viewer-port", str(free_port())],
                cwd=self.home,
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait(self._answers, "the UI")

    def stop(self) -> None:
        """Interrupt the servers as Ctrl-C does; whatever of them is left after a while is killed."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End every process of the platform at once, as a power cut does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def server(self, program: str) -> int:
        """The process of a server, by the name of its program."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child.pid for child in children if any(program in word for word in child.cmdline()))

    def printed(self) -> str:
        """What `wsi-assets ui` has printed."""
        return (self.home / "ui.log").read_text()

    def wait(self, fact: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """What ``fact`` returns once it is true of anything; fails after ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(self._last_lines())
            # A server that does not answer at the moment, e.g. on a full disk, says nothing of the fact.
            with contextlib.suppress(urllib.error.URLError):
                found = fact()
                if found:
                    return found
            time.sleep(0.3)
        raise AssertionError(f"{what} did not come within {seconds} s\n{self._state()}")

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def slides(self) -> set[str]:
        return self._partitions("slide_image")

    def levels(self) -> set[str]:
        return self._partitions("slide_index")

    def _partitions(self, asset: str) -> set[str]:
        data = self.ask(
            "query($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {...on AssetNode "
            "{partitionKeys}}}",
            key={"path": [asset]},
        )
        return set(data["assetNodeOrError"]["partitionKeys"])

    def add_level(self, level: str) -> None:
        """What "Add partition" in the Launchpad's dialog does."""
        data = self.ask(
            """mutation($repository: RepositorySelector!, $key: String!) {
                 addDynamicPartition(repositorySelector: $repository, partitionsDefName: "levels",
                   partitionKey: $key) { __typename } }""",
            repository=REPOSITORY,
            key=level,
        )
        assert data["addDynamicPartition"]["__typename"] == "AddDynamicPartitionSuccess", data

    def materializations(self, asset: str, partition: str) -> list[dict[str, Any]]:
        """Newest first: run id, tags and plain metadata of each."""
        data = self.ask(
            """query($key: AssetKeyInput!, $partitions: [String!]) {
              assetNodeOrError(assetKey: $key) { ...on AssetNode {
                assetMaterializations(partitions: $partitions, limit: 50) {
                  runId tags { key value } metadataEntries {
                    label ...on IntMetadataEntry { intValue } ...on TextMetadataEntry { text }
                    ...on JsonMetadataEntry { jsonString } } } } } }""",
            key={"path": [asset]},
            partitions=[partition],
        )
        return [
            {
                "run_id": event["runId"],
                "tags": {tag["key"]: tag["value"] for tag in event["tags"]},
                "metadata": {
                    entry["label"]: entry.get("intValue", entry.get("text", entry.get("jsonString")))
                    for entry in event["metadataEntries"]
                },
            }
            for event in data["assetNodeOrError"]["assetMaterializations"]
        ]

    def made_by(self, asset: str, partition: str) -> set[str]:
        """Runs that made this partition."""
        return {event["run_id"] for event in self.materializations(asset, partition)}

    def runs(self) -> list[dict[str, Any]]:
        data = self.ask(
            """{runsOrError(limit:200){...on Runs{results{
                runId status pipelineName assetSelection{path} tags{key value}}}}}"""
        )
        return [
            {
                "run_id": run["runId"],
                "status": run["status"],
                "assets": {key["path"][0] for key in run["assetSelection"] or ()},
                "tags": {tag["key"]: tag["value"] for tag in run["tags"]},
            }
            for run in data["runsOrError"]["results"]
        ]

    def status(self, run_id: str) -> str:
        return next(run["status"] for run in self.runs() if run["run_id"] == run_id)

    def seconds_of(self, run_id: str, step: str) -> tuple[float, float]:
        """When a step of a run began and ended, in seconds since 1970."""
        data = self.ask(
            "query($id: ID!) {runOrError(runId: $id) {...on Run {stepStats {stepKey startTime endTime}}}}",
            id=run_id,
        )
        (found,) = [stats for stats in data["runOrError"]["stepStats"] if stats["stepKey"] == step]
        return found["startTime"], found["endTime"]

    def failures(self, run_id: str) -> list[str]:
        """What the steps of a run that failed by themselves say of it."""
        data = self.ask(
            """query($id: ID!) {logsForRun(runId: $id, limit: 1000) {...on EventConnection {events {
                 ...on ExecutionStepFailureEvent {
                   failureMetadata {description} error {message} } } } } }""",
            id=run_id,
        )
        failed = [event for event in data["logsForRun"]["events"] if event]
        return [(event["failureMetadata"] or {}).get("description") for event in failed]

    def why_stale(self, asset: str, partition: str) -> list[str]:
        """Names of the assets because of which Dagster shows this partition as out of date."""
        data = self.ask(
            """query($key: AssetKeyInput!, $partition: String!) {assetNodeOrError(assetKey: $key) {
                 ...on AssetNode {staleCauses(partition: $partition) {key {path} reason}}}}""",
            key={"path": [asset]},
            partition=partition,
        )
        return [cause["key"]["path"][0] for cause in data["assetNodeOrError"]["staleCauses"]]

    def is_idle(self) -> bool:
        return all(run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in self.runs())

    def launch(
        self,
        job: str,
        assets: list[str],
        partition: str,
        run_config: dict[str, Any] | None = None,
    ) -> str:
        """What a click on Materialize does for one partition; returns the run id."""
        data = self.ask(
            """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
                 __typename ...on LaunchRunSuccess { run { runId } } ...on PythonError { message }
                 ...on RunConfigValidationInvalid { errors { message } } } }""",
            params={
                "selector": {
                    **REPOSITORY,
                    "pipelineName": job,
                    "assetSelection": [{"path": [a]} for a in assets],
                },
                "mode": "default",
                "runConfigData": run_config or {},
                "executionMetadata": {
                    "tags": [
                        {"key": "dagster/partition", "value": partition},
                        {"key": "dagster/partition_set", "value": f"{job}_partition_set"},
                    ]
                },
            },
        )
        assert "run" in data["launchPipelineExecution"], data
        return data["launchPipelineExecution"]["run"]["runId"]

    def make(self, job: str, assets: list[str], partition: str, run_config: dict[str, Any] | None = None):
        """Launch a run, and see it succeed."""
        run = self.launch(job, assets, partition, run_config)
        self.wait(lambda: self.status(run) in ("SUCCESS", "FAILURE"), "the end of the run")
        assert self.status(run) == "SUCCESS", self.failures(run)

    def backfill(
        self, assets: list[str], partitions: list[str], run_config: dict[str, Any] | None = None
    ) -> str:
        """What the backfill dialog of the asset graph does; returns the backfill's id."""
        data = self.ask(
            """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
                 __typename ...on LaunchBackfillSuccess { backfillId } ...on PythonError { message } } }""",
            params={
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": partitions,
                "fromFailure": False,
                "runConfigData": run_config or {},
            },
        )
        assert "backfillId" in data["launchPartitionBackfill"], data
        return data["launchPartitionBackfill"]["backfillId"]

    def backfill_status(self, backfill_id: str) -> str:
        data = self.ask(
            """query($id: String!) {partitionBackfillOrError(backfillId: $id) {
                 ...on PartitionBackfill {status}}}""",
            id=backfill_id,
        )
        return data["partitionBackfillOrError"]["status"]

    def skip_reason(self, sensor: str) -> str | None:
        """What the sensor's latest poll says."""
        data = self.ask(
            """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
                 ...on Sensor { sensorState { ticks(limit: 1) { skipReason error { message } } } } } }""",
            selector={**REPOSITORY, "sensorName": sensor},
        )
        (tick,) = data["sensorOrError"]["sensorState"]["ticks"] or [{"skipReason": None, "error": None}]
        assert tick["error"] is None, tick["error"]
        return tick["skipReason"]

    def evaluations(self, sensor: str, since: float) -> int:
        """How many evaluations of a sensor began after ``since``, in seconds since 1970, and have ended."""
        data = self.ask(
            """query($selector: SensorSelector!, $since: Float!) { sensorOrError(sensorSelector: $selector) {
                 ...on Sensor { sensorState { ticks(afterTimestamp: $since) { status } } } } }""",
            selector={**REPOSITORY, "sensorName": sensor},
            since=since,
        )
        ticks = data["sensorOrError"]["sensorState"]["ticks"]
        return sum(tick["status"] in ("SKIPPED", "SUCCESS") for tick in ticks)

    def settle(self) -> None:
        """Wait until all runs have ended, the slide folder has nothing new, and no automation requests a run.

        An automation may request a second run of a slide whose two files it saw one after the other.
        """
        before: set[str] = set()
        while before != (now := {run["run_id"] for run in self.runs()}):
            before = now
            self.wait(self.is_idle, "the end of all runs")
            self.wait(lambda: "nothing new" in (self.skip_reason("slide_folder") or ""), "no more news")
            began = time.time()
            self.wait(lambda began=began: self.evaluations("slides_follow", began) >= 2, "two evaluations")

    def check(self, asset: str, name: str, partition: str) -> dict[str, Any]:
        """The latest evaluation of a check: success and description."""
        data = self.ask(
            """query($key: AssetKeyInput!, $name: String!) {
                 assetCheckExecutions(assetKey: $key, checkName: $name, limit: 20) {
                   evaluation { success description partition } } }""",
            key={"path": [asset]},
            name=name,
        )
        found = [e["evaluation"] for e in data["assetCheckExecutions"] if e["evaluation"]]
        return next(e for e in found if e["partition"] == partition)

    def _state(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(str(run) for run in self.runs())
        return "the UI does not answer\n" + self._last_lines()

    def _last_lines(self) -> str:
        logs = sorted(self.storage.glob("dagster_home/server_logs/*.log"))
        return "\n".join([self.printed(), *(log.read_text(errors="replace")[-3000:] for log in logs)])

    def _answers(self) -> bool:
        try:
            data = self.ask("{repositoriesOrError{...on RepositoryConnection{nodes{name location{name}}}}}")
        except (urllib.error.URLError, OSError):
            return False
        return bool(data["repositoriesOrError"].get("nodes"))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A disk in memory at ``folder`` while this is open; only the folder where mounting is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
    is_disk = (
        shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        yield
    finally:
        if is_disk:
            # Lazily: killed processes may take a moment to let go of it.
            subprocess.run(["umount", "--lazy", folder], check=False)
