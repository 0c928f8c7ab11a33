"""An import rule of our own: only its owner imports the schema module of a private collection.

Owners are read from the catalogue, so a new collection needs no new rule. pyproject.toml names this class.
"""

import grimp
from importlinter import Contract, ContractCheck, fields, output
from importlinter.application import contract_utils

from ximler.schema import CATALOGUE

__all__ = ["PrivateCollections"]


class PrivateCollections(Contract):
    type_name = "private_collections"

    ignore_imports = fields.SetField(subfield=fields.ImportExpressionField(), required=False)

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002 (import-linter's signature)
        ignored = contract_utils.remove_ignored_imports_and_report(
            graph=graph,
            ignore_imports=self.ignore_imports,  # type: ignore[arg-type]  # a field, which holds its value in instances
            unmatched_alerting=contract_utils.AlertLevel.ERROR,  # type: ignore[arg-type]  # the same
        )
        owners = {c.document.__module__: f"ximler.{c.owner}" for c in CATALOGUE if c.private}
        broken = [
            f"{importer} imports {module}, which is private to {owner}"
            for module, owner in owners.items()
            for importer in sorted(graph.find_modules_that_directly_import(module))
            if not f"{importer}.".startswith((f"{owner}.", "ximler.schema."))
        ]
        return ContractCheck(kept=not broken, warnings=list(ignored.warnings), metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(f"- {line}", bold=False)
        output.new_line()
