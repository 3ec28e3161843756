"""Whom a run's people are compared with: a re-ID network, and pictures of real people as it sees them."""

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
    """A re-ID network's file with its sha256, and the listed real pictures with their fingerprint, None for none.

    The network is loaded, and the pictures become features, where first asked for.
    """

    path: Path
    sha256: str
    listing: Listing | None = None
    fingerprint: str | None = None
    _found: dict[str, "RealPeople"] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def network(self) -> "FeatureNetwork":
        """On the CPU. Raises InputError for a file that is none."""
        from passersby.reid.checkpoint import load_reid
        from passersby.reid.network import FeatureNetwork

        loaded = load_reid(self.path)
        for note in loaded.notes:
            print(f"note: --identity: {note}", file=sys.stderr)
        return FeatureNetwork(loaded.network, loaded.sha256)

    def compared_with(
        self, configuration: Configuration, device: str, dry_run: bool
    ) -> "tuple[FeatureNetwork, RealPeople | None]":
        """What an IdentityScorer compares with; the real pictures become features first, on the connected cluster.

        dry_run: some pictures only, in this process.
        """
        if dry_run and self.listing is not None:
            some = self.listing.take(range(min(DRY_PICTURES, len(self.listing))))
            real = _features(some, self.network, None, _device_here(device), True)
        else:
            real = self.real(configuration, device, False)
        return self.network.to("cpu"), real

    def real(self, configuration: Configuration, device: str, in_this_process: bool) -> "RealPeople | None":
        """The real pictures as features, and who of them the run's people are; None where there are none."""
        if self.listing is not None and "real" not in self._found:
            names = [origin.name for origin in configuration.origins] or None
            self._found["real"] = _features(self.listing, self.network, names, device, in_this_process)
        return self._found.get("real")

    def look_for_copies(self, run: GenerationRun, device: str) -> None:
        """Find near-copies of real pictures and doubles in a whole run, for its report, unless that was done.

        In this process, on its GPU where `device` allows that and there is one. The figures are printed.
        """
        these = {"plan_hash": run.hash, "images": run.plan.images}
        try:
            known = json.loads(run.output.read(PRIVACY) or b"{}")
        except ValueError:
            known = {}
        if isinstance(known, dict) and {name: known.get(name) for name in these} == these:
            return
        from pipeline.copies import privacy

        device = _device_here(device)
        real = self.real(run.plan.configuration, device, True)
        found = privacy(run, self.network, real, device, self.listing)
        print(*privacy_lines(found), sep="\n")


def _features(
    listing: Listing, network: "FeatureNetwork", names: Sequence[str] | None, device: str, in_this_process: bool
) -> "RealPeople":
    from datasets.people.real_people import real_people
    from pipeline.features import Workers, embeddings_of

    network = network.to(device if in_this_process else "cpu")
    found = embeddings_of(listing.files, network, Workers(device, in_this_process), "--real")
    if found.problem is not None:
        lost = len(listing) - len(found.places)
        print(f"note: --real: {lost:,} pictures are left out, the first: {found.problem}", file=sys.stderr)
    real = real_people(listing.take(found.places), found.features, names)
    for note in real.notes:
        print(f"note: --real: {note}", file=sys.stderr)
    return real


def _device_here(device: str) -> str:
    import torch

    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def identity_of(
    network: str | None, real: str | None, latents: Latents | None, needing: Mapping[str, float | None]
) -> Identity | None:
    """What --identity and --real give, looked at but not loaded; None without --identity.

    real: a data set, of which the splits that the latents were made of are taken, and "train" for artificial people.
    needing: values of other options that mean nothing without --identity. Raises InputError.
    """
    given = [f"{option} {value}" for option, value in {"--real": real, **needing}.items() if value is not None]
    if network is None:
        if given:
            raise InputError(f"{given[0]}: it belongs to --identity NETWORK, a re-ID network that compares people")
        return None
    if real is None and latents is not None:
        data = latents.about.get("data")
        raise InputError(
            "--identity: people of --latents are compared with their real pictures: give with --real the data set they "
            f"were made of{f' ({data})' if isinstance(data, str) else ''}"
        )
    judging = [text for text in given if text.startswith(("--identity-margin", "--identity-ceiling"))]
    if real is None and judging:
        raise InputError(f"{judging[0]}: it judges by pictures of real people: give them with --real")
    path = local_copy(network, "--identity")
    sha256 = file_sha256(path, "--identity")
    if real is None:
        return Identity(path, sha256)
    splits = [TRAIN] if latents is None else [str(split) for split in latents.about.get("splits") or [TRAIN]]
    pictures = list_pictures(real, splits, allow_test_people=True)
    return Identity(path, sha256, pictures.listing, pictures.fingerprint)
