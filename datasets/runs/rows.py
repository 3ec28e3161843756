"""What a plan says of every image, whoever makes it: its origin, its seeds, and how far it moves from its person."""

from datasets.runs.configuration import PEOPLE, PICTURES, Configuration
from datasets.runs.verdicts import LATENT

SEED = "seed"  # the `source` of artificial people's images
NO_PARTNER = "this person has no other picture to move towards"


def planned_columns(configuration: Configuration, person: int) -> dict[str, list]:
    """The columns of a shard that the plan alone decides, of a person's variants in their order."""
    c, latent = configuration, configuration.latents is not None
    origin = c.origins[person] if latent else None
    varied = range(1, c.variants)
    once = {
        "source": LATENT if latent else SEED,
        "source_path": origin.path if latent else None,
        "camera": origin.camera if latent else None,
        "seed": None if latent else c.person_seed(person),
        "method": c.method,
        "height": c.height,
        "width": c.width,
    }
    return {name: [value] * c.variants for name, value in once.items()} | {
        "mix_seed": [None, *(c.mix_seed(person, variant) for variant in varied)],
        "mix_layers": [[], *(list(c.layers) for _ in varied)],
        "amount": amounts_of(c, person),
        "truncation_psi": [None if latent else c.truncation_psi, *(c.truncation_psi for _ in varied)],
    }


def partner_count(configuration: Configuration, person: int) -> int:
    """How many pictures a person's variants may take styles from; 0 where codes are drawn."""
    own = configuration.origins[person].pictures if configuration.origins else 0
    if configuration.partners == PICTURES:
        return own - 1
    if configuration.partners == PEOPLE:
        return configuration.pictures - own
    return 0


def amounts_of(configuration: Configuration, person: int) -> list[float | None]:
    """How far each variant moves towards its partner: None for the base, for mixing, and where there is no partner.

    The same for all, except where the variants are more than the pictures that they can move towards: they go around
    those R times, and in round r = 0 .. R - 1 only (R - r) / R of the way, so that no two are equal.
    """
    c = configuration
    if c.draws_codes or c.amount is None:
        return [None] + [c.amount] * (c.variants - 1)
    count = partner_count(c, person)
    if not count:
        return [None] * c.variants
    rounds = -(-(c.variants - 1) // count)
    return [None] + [c.amount * (rounds - index // count) / rounds for index in range(c.variants - 1)]


def people_without_partners(configuration: Configuration, people: int) -> str:
    """A line for people on who cannot be varied, or nothing."""
    if configuration.partners != PICTURES or configuration.variants == 1:
        return ""
    alone = [configuration.origins[person].name for person in range(people) if not partner_count(configuration, person)]
    if not alone:
        return ""
    return (
        f"note: {len(alone):,} of {people:,} people have one picture only, the first is {alone[0]!r}: there is none to "
        "move towards, so their variants get status error"
    )
