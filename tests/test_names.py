"""One word per thing: no two public classes or functions of the package share a name, unless they are one idea."""

import ast
from collections import defaultdict
from pathlib import Path

import accmt

PACKAGE = Path(accmt.__file__).parent

ONE_IDEA = {
    "main": "the entry of a program: the command line, and the process that it starts for a launch",
    "run": "the function of each command of the command line",
    "add_arguments": "completes the parser of each command",
    "tracker_for": "makes a tracker of one library: each of these files has it",
}

# Names to change; the comment says to what.
_KNOWN: dict[str, str] = {
    "Beside": "cli.checkpoints.inventory: FoundBeside; loop.trainable_parameters: ParametersBeside",
    "Count": "loop.learning_rate: ResumePoint; tracking.entries: ValueCount",
    "Ended": "cli.launch.launcher: LauncherEnded; tracking.entries: RunEnded",
    "Kept": "checkpoint.extra_state: ExtraState; rules.decision: KeptModel",
    "Length": "hyperparameters.schedulers: ScheduleLength; rules.progress: TrainingLength",
    "Limits": "hp_search.declaration: RangeLimits; tracking.background: QueueLimits",
    "Objective": "hp_search.objective: SearchObjective; rules.ranking: RankedObjective",
    "Outcome": "hp_search.study: TrialOutcome; rules.decision: Outcome; tracking.background: Delivery",
    "Plan": "cli.launch.plan: LaunchPlan; setup.build: TrainingPlan",
    "Problem": "config.errors: Problem; rules.errors: RuleProblem",
    "Saving": "checkpoint.saved_models: SavedModel; rules.nodes: Saving",
    "Signals": "cli.launch.launcher: SignalForwarder; distributed.signals: Signals",
    "State": "cli.checkpoints.inspection: CheckpointState; hp_search.study: TrialState",
    "arguments_of": "hyperparameters.arguments: signature_of; loop.evaluate: metric_arguments",
    "begin": "files.durable: begin_file; setup.resume: begin_training",
    "check": "checkpoint.deepspeed: check_engine; rules.checker: check",
    "compare": "loop.changes: describe_changes; rules.ranking: compare",
    "constant": "hyperparameters.schedules: constant; rules.constants: constant_value",
    "evaluate": "loop.evaluate: evaluate; rules.evaluator: value_of",
    "has_state": "checkpoint.object_state: is_stateful, used in data.seeding too",
    "identity_of": "checkpoint.tensor_files: storage_of; data.identity: identity_of",
    "pad": "collate_fns.columns: pad_column; padding: pad",
    "plain": "hyperparameters.plain: plain; rules.printable: unstyled; tracking.tracker: sendable",
    "plan": "cli.launch.plan: plan_launch; setup.build: plan_training",
    "problem_of": "checkpoint.publish: folder_problem; checkpoint.tensor_files: tensor_problem",
    "read": "cli.checkpoints.inspection: inspect; tracking.journal: read_lines",
    "shortened": "checkpoint.format: shortened_value; files.paths: shortened_path",
    "shown": "hp_search.space: displayed; rules.printable: shown",
    "size_of": "checkpoint.tensor_files: tensor_bytes; cli.checkpoints.inspection: folder_bytes",
    "unit_of": "data.position_unit: position_unit; rules.units: unit_of",
    "write_json": "cli.output: print_json; files.json_io: write_json",
}


def public():
    """Return name -> the files that define a public class or function of this name."""
    places = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                places[node.name].add(str(path.relative_to(PACKAGE)))
    return places


def test_no_two_public_things_share_a_name():
    shared = {name: sorted(places) for name, places in public().items() if len(places) > 1}
    assert len(public()) > 500
    assert not {name: places for name, places in shared.items() if name not in ONE_IDEA and name not in _KNOWN}


def test_the_exceptions_are_needed():
    assert not [name for name in ONE_IDEA if len(public()[name]) < 2]
