"""Small tables that read well in Jupyter, on GitHub and on a terminal."""

import pandas as pd


class Table(pd.DataFrame):
    """A DataFrame without index and header: a few columns that explain themselves."""

    def _repr_html_(self):
        with pd.option_context("display.max_colwidth", None):  # An address must not be cut.
            html = self.to_html(index=False, header=False, border=0, notebook=True)
        return html.replace("<td>", '<td style="text-align: left">')

    def __repr__(self):
        return self.to_string(index=False, header=False, justify="left")


def show(rows):
    """A table of the given rows (tuples), without header."""
    return Table([tuple(map(str, row)) for row in rows])


def summary(cloud, dataset, results):
    """The closing table: what ran where, on which pictures, and what came out."""
    data = (
        f"{dataset.name} (the fall-back: no Fashion-MNIST here)"
        if dataset.is_fallback
        else dataset.name
    )
    rows = [("pictures", data), *results.items()]
    if cloud.is_local:
        rows.append(("look at the jobs", "python -m local_cloud status"))
    return show(rows)
