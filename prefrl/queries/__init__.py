"""Which questions to ask: by uncertainty, by diversity, within one stage of the task; and how many in a session."""

from prefrl.queries.acquisition import disagreement, entropy, information_gain, pair_logits
from prefrl.queries.active import ActiveQuery, determinantal, k_center, same_stage, uncertain
from prefrl.queries.diversity import greedy_determinantal, greedy_k_center
from prefrl.queries.questions import Questions
from prefrl.queries.schedules import questions_due, session_sizes
from prefrl.queries.temporal_distance import fit_temporal_embedding, stage_distance
from prefrl.queries.triplets import TripletQuery

__all__ = [
    "ActiveQuery",
    "Questions",
    "TripletQuery",
    "determinantal",
    "disagreement",
    "entropy",
    "fit_temporal_embedding",
    "greedy_determinantal",
    "greedy_k_center",
    "information_gain",
    "k_center",
    "pair_logits",
    "questions_due",
    "same_stage",
    "session_sizes",
    "stage_distance",
    "uncertain",
]
