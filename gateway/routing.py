"""Which replicas may answer a call, best first.

Pure: refuses to know clocks, sockets and loads it isn't told; nothing here awaits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from backends.api import Health, Replica
from gateway.auth import Tenant
from gateway.refusal import Refusal
from gateway.settings import Model


class Models:
    """The models of the configuration by each of their names."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._by_name = {name: model for model in models for name in (model.name, *model.aliases)}

    def find(self, name: str, tenant: Tenant) -> Model:
        """Return the model that the tenant calls by this name; one it may not call does not exist for it."""
        model = self._by_name.get(name)
        if model is None or not tenant.may_call(model):
            known = ", ".join(list(self.names(tenant))[:20]) or "none"
            raise Refusal(
                404, "model_not_found", f"the model {name[:128]!r} does not exist; there are: {known}", param="model"
            )
        return model

    def names(self, tenant: Tenant) -> Iterator[str]:
        """Yield all names by which the tenant can call something."""
        return (name for name, model in self._by_name.items() if tenant.may_call(model))


class Outstanding:
    """How many sequences each replica has been given and not yet answered."""

    def __init__(self) -> None:
        self._sequences: Counter[str] = Counter()

    def __getitem__(self, replica_id: str) -> int:
        return self._sequences[replica_id]

    @contextmanager
    def given(self, replica_id: str, sequences: int) -> Iterator[None]:
        """Count them while the block runs."""
        self._sequences[replica_id] += sequences
        try:
            yield
        finally:
            self._sequences[replica_id] -= sequences


def are_down(replicas: Iterable[Replica], model: str, health: Mapping[str, Health]) -> bool:
    """Whether waiting for any replica of a model would be in vain."""
    return all(health[replica.id].is_down for replica in replicas if replica.model == model)


def ordered(
    replicas: Iterable[Replica], model: str, health: Mapping[str, Health], outstanding: Outstanding
) -> list[Replica]:
    """Return the ready replicas of a model, those with the least to do first."""
    ready = [replica for replica in replicas if replica.model == model and health[replica.id].ready]
    return sorted(ready, key=lambda replica: outstanding[replica.id])
