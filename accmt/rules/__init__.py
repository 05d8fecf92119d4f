"""The rule language: when to save a model, when to checkpoint, when to evaluate and when to stop.

Pure: the standard library and lark only. Text is parsed once into nodes (`parser`), checked once against what the
training reports (`checker`), and then evaluated against observed values (`engine`) without parsing again.

    rule = SavingRule.parse("best_accuracy@dev", patience=3)
    facts = Facts({"accuracy": Reported(("dev",), greater_is_better=True)}, ("dev",))
    rules = Rules((rule,))
    check(rules, facts)
    engine = RuleEngine(rules, facts)
    decision = engine.after_evaluation(Observation(Progress(evaluation=1), {"dev": {"accuracy": 0.5}}))
"""

from accmt.rules.checker import assign_patience, canonical_name, check
from accmt.rules.decision import Decision, Due, KeptModel, Outcome, Stop, Verdict
from accmt.rules.engine import RuleEngine
from accmt.rules.errors import RuleError, RuleProblem
from accmt.rules.parser import parse_cadence, parse_condition, parse_saving
from accmt.rules.progress import Length, Progress
from accmt.rules.replicated import replicated
from accmt.rules.rule import CadenceRule, Facts, Reported, Rules, SavingRule, StopCondition
from accmt.rules.scheduler_score import FollowedScore
from accmt.rules.store import MetricsStore, Observation, RecordedReplicates, with_replicates

__all__ = [
    "CadenceRule",
    "Decision",
    "Due",
    "Facts",
    "FollowedScore",
    "KeptModel",
    "Length",
    "MetricsStore",
    "Observation",
    "Outcome",
    "Progress",
    "RecordedReplicates",
    "Reported",
    "RuleEngine",
    "RuleError",
    "RuleProblem",
    "Rules",
    "SavingRule",
    "Stop",
    "StopCondition",
    "Verdict",
    "assign_patience",
    "canonical_name",
    "check",
    "parse_cadence",
    "parse_condition",
    "parse_saving",
    "replicated",
    "with_replicates",
]
