"""At which wavelength a channel shines that is named after its dye.

Sources of the maxima of emission: Johnson and Spence, The Molecular Probes handbook, 11th edition, 2010, chapters 1 and
8; of proteins Lambert, FPbase: a community-editable fluorescent protein database, Nature Methods 16, 2019.
"""

from __future__ import annotations

import re

_EMISSIONS = {
    **{"DAPI": 461, "HOECHST": 461, "HOECHST33342": 461, "HOECHST33258": 461},
    **{"CFP": 477, "ECFP": 477, "GFP": 507, "EGFP": 507, "YFP": 527, "EYFP": 527},
    **{"MTURQUOISE2": 474, "MNEONGREEN": 517, "VENUS": 528, "MVENUS": 527},
    **{"TDTOMATO": 581, "DSRED": 583, "TAGRFP": 584, "MSCARLET": 594, "MRFP": 607, "MCHERRY": 610, "MKATE2": 633},
    **{"FITC": 518, "TRITC": 573, "TEXASRED": 615},
    **{"CY3": 565, "CY5": 665, "CY7": 775},
    **{"ALEXA405": 421, "ALEXA488": 519, "ALEXA532": 554, "ALEXA546": 573, "ALEXA555": 565, "ALEXA568": 603},
    **{"ALEXA594": 617, "ALEXA633": 647, "ALEXA647": 668, "ALEXA680": 702, "ALEXA750": 775},
}
"""In nm, by the name in capitals without spaces and marks."""
_SHORT_ALEXA = re.compile(r"(?:ALEXAFLUOR|AF)(\d{3})")


def emission_of_dye(name: str) -> float | None:
    """Give the maximum of the emission of a dye in nm, `None` for a name that is not known.

    Args:
        name: as channels are called, for instance `DAPI`, `mCherry`, `Alexa Fluor 488`, `AF488-T2` or `EGFP (low)`. Two
            dyes are none.
    """
    words = re.findall(r"[A-Z0-9]+", name.upper())
    # A dye may be written in several words, and others may stand beside it.
    spans = ["".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    found = {_EMISSIONS.get(_SHORT_ALEXA.sub(r"ALEXA\1", span), 0) for span in spans} - {0}
    return float(found.pop()) if len(found) == 1 else None
