"""The frozen configuration of a run: every setting that changes the bytes of its shards."""

import dataclasses
import functools
import hashlib
import math
import struct

from passersby.errors import InputError
from passersby.options import Json, canonical_sha256, check, stored_values

METHODS = MIX, INTERPOLATE, CAMERA = ("mix", "interpolate", "camera")
RANDOM, PEOPLE, PICTURES = PARTNERS = ("random", "people", "pictures")
FORMATS = ("jpeg", "png")
# Of new runs. On a CPU all recipes are the same. On a GPU, from 2 on float16 kernels are scaled (`set_scaled_kernels`),
# from 3 on the filtered leaky ReLU has the GPU's own kernel (`set_kernel`), and from 4 on float32 layers compute in
# float32, cuDNN's algorithms are deterministic (`exact_numbers`), channels are padded (`set_padded_channels`), and a
# chunk of generation holds images of several people.
RECIPE = 4
PERSON_PIXEL_BYTES = 1_000_000_000  # a person is never divided, so this much must fit a worker


def check_recipe(recipe: int, newest: int) -> None:
    """Raise InputError for the recipe of a later version, whose bytes this program cannot make."""
    known = tuple(range(1, newest + 1))
    check("recipe", recipe, recipe in known, " or ".join(map(str, known)) + "; a later version began the folder")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a real person's code.

    name: the person's name in the data. path, camera: of the picture nearest to the code. pictures: the number
    of pictures whose mean the code is.
    """

    name: str
    path: str
    camera: int | None
    pictures: int


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Everything that changes the bytes of a shard, and nothing else.

    The number of people and the verdict thresholds are absent: more people extend a run, and other
    thresholds give another manifest over the same shards. `reference_threshold` is a detector score. The
    first variant of a person that reaches it is the person's similarity reference. It is the run's detector
    threshold at the time when the folder was begun. Raises InputError for a value out of range.

    People come from seeds. With `latents` they are the people of a latents table, in its order, and `origins`
    has one entry for each of them. `partners` names the codes that variants take styles from: random people's,
    pictures of other real people, or other pictures of the same person.

    The method `camera` is for networks trained by identity pairs: a variant keeps the half of z that says who, and
    draws the half that says how the person is seen. No layers are mixed. `cameras` are the cameras of a network with a
    label for each camera, in the order of its labels; every image then has one of them. With `latents` the base is the
    picture that the person's origin names, as it was inverted.
    """

    seed: int
    variants: int
    method: str
    layers: tuple[int, ...]
    amount: float | None
    truncation_psi: float | None  # None where no code is drawn
    network: str  # sha256 of the file
    height: int
    width: int
    format: str
    jpeg_quality: int | None
    unit_images: int
    detector: str  # sha256 of the weights
    reference_threshold: float
    ssim_data_range: float
    recipe: int = 1  # `RECIPE` rises whenever a change of this code changes bytes; a folder keeps its own
    latents: str | None = None  # sha256 of the table
    partners: str = RANDOM
    origins: tuple[Origin, ...] = ()
    identity: str | None = None  # sha256 of the re-ID network that compares people
    real: str | None = None  # fingerprint of the real pictures that it compares with
    detector_setup: str | None = None  # of another detector than YOLOv4-tiny: its layout, size and class of people
    cameras: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_recipe(self.recipe, RECIPE)
        check("--seed", self.seed, 0 <= self.seed < 2**32, "0 to 4294967295")
        check("--variants", self.variants, self.variants >= 1, "1 or more (the base image is one of them)")
        check("--method", self.method, self.method in METHODS, " or ".join(METHODS))
        if (self.method == CAMERA) != (not self.layers):
            raise InputError(f"--method {self.method} with layers {list(self.layers)}: only camera mixes no layers")
        if self.cameras and self.method != CAMERA:
            raise InputError(f"--method {self.method} with labels of cameras: only --method camera draws them")
        if self.amount is not None:
            check("--amount", self.amount, 0 < self.amount <= 1, "above 0, at most 1")
        self._check_people()
        if self.draws_codes or self.truncation_psi is not None:
            good = self.truncation_psi is not None and -2 <= self.truncation_psi <= 2
            check("--truncation-psi", self.truncation_psi, good, "-2 to 2")
        check("--height", self.height, 8 <= self.height <= 4096, "8 to 4096 pixels")
        check("--width", self.width, 8 <= self.width <= 4096, "8 to 4096 pixels")
        check("--format", self.format, self.format in FORMATS, " or ".join(FORMATS))
        if self.jpeg_quality is not None:
            check("--jpeg-quality", self.jpeg_quality, 1 <= self.jpeg_quality <= 100, "1 to 100")
        check("--unit-images", self.unit_images, 1 <= self.unit_images <= 100_000, "1 to 100000")
        check("--detector-threshold", self.reference_threshold, 0 <= self.reference_threshold <= 1, "0 to 1")
        finite = math.isfinite(self.ssim_data_range) and self.ssim_data_range > 0
        check("--ssim-data-range", self.ssim_data_range, finite, "a finite number above 0")
        if self.person_pixel_bytes > PERSON_PIXEL_BYTES:
            raise InputError(
                f"--variants {self.variants} at {self.height} x {self.width}: one person is never divided and would "
                f"take {self.person_pixel_bytes / 1e9:.1f} GB of raw pixels; at most "
                f"{PERSON_PIXEL_BYTES // self.image_bytes} variants fit"
            )

    def _check_people(self) -> None:
        check("--partners", self.partners, self.partners in PARTNERS, " or ".join(PARTNERS))
        if self.method == CAMERA and self.partners != RANDOM:
            raise InputError(
                f"--partners {self.partners}: --method camera takes no styles of others; leave it out, or give "
                "--method mix"
            )
        if self.latents is None and self.partners != RANDOM:
            raise InputError(f"--partners {self.partners}: they are real people's, give them with --latents")
        if bool(self.origins) != (self.latents is not None):
            raise InputError("--latents: a table of people belongs to its origins")
        if self.partners == PICTURES and self.method == "mix":
            raise InputError(
                "--partners pictures: it belongs to --method interpolate, which with --amount 1 takes the chosen "
                "--layers wholly"
            )

    @property
    def draws_codes(self) -> bool:
        """Whether any code is drawn by a seed and mapped, with truncation."""
        return self.latents is None or self.partners == RANDOM

    @functools.cached_property
    def pictures(self) -> int:
        """Number of real people's pictures in the latents table."""
        return sum(origin.pictures for origin in self.origins)

    @property
    def image_bytes(self) -> int:
        """Raw bytes of one image."""
        return self.height * self.width * 3

    @property
    def person_pixel_bytes(self) -> int:
        """Raw bytes of all images of one person."""
        return self.variants * self.image_bytes

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of the configuration as canonical JSON; it stands in every shard."""
        return canonical_sha256(self.values())

    def values(self) -> dict[str, Json]:
        """Every key and its value. A key that a later version added is left out at its default, so that older runs
        keep their hash (passersby/options.py)."""
        return stored_values(self, always=("recipe",))

    def settings(self) -> dict[str, Json]:
        """The configuration for users and scripts: `values` without the origins, which are as many as the people."""
        return {name: value for name, value in self.values().items() if name != "origins"}

    def called(self, person: int) -> str:
        """The name of a person for users: a real person's name in the data set, an artificial person's number."""
        return self.origins[person].name if self.origins else str(person)

    def person_seed(self, person: int) -> int:
        """Seed of an artificial person's z. The reference StyleGAN3 tools make the same person from `--seeds=` and
        this number."""
        return self.seed + person

    def mix_seed(self, person: int, variant: int) -> int:
        """Seed, below 2^32, of the z that a variant is mixed with. Without random partners it chooses the picture.

        The first four bytes (little-endian) of the sha256 of (seed, person, variant), each as an unsigned
        64-bit little-endian integer.
        """
        return int.from_bytes(self._digest(person, variant)[:4], "little")

    def camera(self, person: int, variant: int) -> int | None:
        """The camera that an image is made for; None for networks without a label for each camera.

        The next four bytes of the hash of `mix_seed`, modulo the number of cameras, choose it.
        """
        if not self.cameras:
            return None
        return self.cameras[int.from_bytes(self._digest(person, variant)[4:8], "little") % len(self.cameras)]

    def _digest(self, person: int, variant: int) -> bytes:
        return hashlib.sha256(struct.pack("<QQQ", self.seed, person, variant)).digest()
