"""Scrapes as dictionaries: a sample's name and its label values, in the order of the labels' names."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service.metrics.exposition import rendered


def read(text):
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(client):
    response = await client.get("/metrics")
    assert response.status_code == 200
    return read(response.text)


def exposed(*snapshots):
    """The samples that one answer has for these snapshots."""
    return read(rendered(snapshots, {}, "")[0].decode())


def labelled(samples, name):
    """The samples of one name by the last of their label values."""
    return {key[-1]: value for key, value in samples.items() if key[0] == name}
