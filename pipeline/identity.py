"""The re-ID network that compares a run's people, and the real people's pictures that it compares them with."""

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.latents.pictures import list_pictures
from datasets.latents.table import Latents
from datasets.people.listing import TRAIN, Listing
from datasets.runs.configuration import Configuration
from datasets.runs.run import GenerationRun
from datasets.storage.local_copy import local_copy
from passersby.errors import InputError
from passersby.files import file_sha256
from reporting.run.identity import PRIVACY, privacy_lines

if TYPE_CHECKING:
    from datasets.people.real_people import RealPeople
    from passersby.reid.network import FeatureNetwork

DRY_PICTURES = 16  # real pictures of a dry run: enough to see that they can be read


@dataclasses.dataclass(frozen=True, eq=False)
class Identity:
    """A re-ID network's file with its sha256, and the listing of the real pictures with its fingerprint.

    Without real pictures `listing` and `fingerprint` are None. The network is loaded on its first use; the features of
    the pictures are computed on their first use.
    """

    path: Path
    sha256: str
    listing: Listing | None = None
    fingerprint: str | None = None
    _real_people: dict[str, "RealPeople"] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def network(self) -> "FeatureNetwork":
        """The network, on the CPU. Raises InputError for a file that is no re-ID network."""
        from passersby.reid.checkpoint import load_judge

        loaded = load_judge(self.path)
        for note in loaded.notes:
            print(f"note: --identity: {note}", file=sys.stderr)
        return loaded.feature_network()

    def compared_with(
        self, configuration: Configuration, device: str, dry_run: bool
    ) -> "tuple[FeatureNetwork, RealPeople | None]":
        """The network and the real people that an IdentityScorer takes.

        The features of the real pictures are computed first, on the connected cluster. dry_run: takes DRY_PICTURES of
        the pictures, and computes their features in this process.
        """
        if dry_run and self.listing is not None:
            sample = self.listing.take(range(min(DRY_PICTURES, len(self.listing))))
            real = _features(sample, self.network, None, _device_here(device), True)
        else:
            real = self.real(configuration, device, False)
        return self.network.to("cpu"), real

    def real(self, configuration: Configuration, device: str, in_this_process: bool) -> "RealPeople | None":
        """The real pictures' features, and which real people the run's people are; None without pictures."""
        if self.listing is not None and "real" not in self._real_people:
            names = [origin.name for origin in configuration.origins] or None
            self._real_people["real"] = _features(self.listing, self.network, names, device, in_this_process)
        return self._real_people.get("real")

    def look_for_copies(self, run: GenerationRun, device: str) -> None:
        """Find near-copies of real pictures, and doubles, in a whole run for its report.

        Nothing is done when the run's `privacy.json` is already that of this plan and its images. Otherwise this
        process searches, on its GPU where there is one and `device` allows it, and prints the figures.
        """
        current = {"plan_hash": run.hash, "images": run.plan.images}
        try:
            record = json.loads(run.output.read(PRIVACY) or b"{}")
        except ValueError:
            record = {}
        if isinstance(record, dict) and {name: record.get(name) for name in current} == current:
            return
        from pipeline.copies import privacy

        device = _device_here(device)
        real = self.real(run.plan.configuration, device, True)
        figures = privacy(run, self.network, real, device, self.listing)
        print(*privacy_lines(figures), sep="\n")


def _features(
    listing: Listing, network: "FeatureNetwork", names: Sequence[str] | None, device: str, in_this_process: bool
) -> "RealPeople":
    from datasets.people.real_people import real_people
    from pipeline.features import Workers, embeddings_of

    network = network.to(device if in_this_process else "cpu")
    embeddings = embeddings_of(listing.files, network, Workers(device, in_this_process), "--real")
    if embeddings.problem is not None:
        unreadable = len(listing) - len(embeddings.places)
        print(f"note: --real: {unreadable:,} pictures are left out, the first: {embeddings.problem}", file=sys.stderr)
    real = real_people(listing.take(embeddings.places), embeddings.features, names)
    for note in (*real.notes, *embeddings.notes):
        print(f"note: --real: {note}", file=sys.stderr)
    return real


def _network_sha256(path: Path) -> str:
    own = file_sha256(path, "--identity")
    if not path.with_suffix(".json").is_file():
        return own
    from passersby.reid.onnx_network import onnx_sha256  # imports PyTorch, which takes seconds

    return onnx_sha256(path) or own  # a JSON file beside an .onnx decides its features too


def _device_here(device: str) -> str:
    import torch

    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def identity_of(
    network: str | None, real: str | None, latents: Latents | None, needing: Mapping[str, float | None]
) -> Identity | None:
    """The network of --identity and the pictures of --real, listed but not loaded; None without --identity.

    real: a data set. With latents the splits are taken that the latents were made of, for artificial people "train".
    needing: values of other options, which mean nothing without --identity. Raises InputError.
    """
    options = [f"{option} {value}" for option, value in {"--real": real, **needing}.items() if value is not None]
    if network is None:
        if options:
            raise InputError(f"{options[0]}: it belongs to --identity NETWORK, a re-ID network that compares people")
        return None
    if real is None and latents is not None:
        data = latents.about.get("data")
        raise InputError(
            "--identity: people of --latents are compared with their real pictures: give with --real the data set they "
            f"were made of{f' ({data})' if isinstance(data, str) else ''}"
        )
    thresholds = [text for text in options if text.startswith(("--identity-margin", "--identity-ceiling"))]
    if real is None and thresholds:
        raise InputError(f"{thresholds[0]}: it judges by pictures of real people: give them with --real")
    path = local_copy(network, "--identity", perhaps=(".json",))
    sha256 = _network_sha256(path)
    if real is None:
        return Identity(path, sha256)
    splits = [TRAIN] if latents is None else [str(split) for split in latents.about.get("splits") or [TRAIN]]
    pictures = list_pictures(real, splits, allow_test_people=True)
    return Identity(path, sha256, pictures.listing, pictures.fingerprint)
