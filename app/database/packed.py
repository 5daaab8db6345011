"""An event of the ledger may be stored compressed: a mark, then a frame of Zstandard with a dictionary.

`pack` makes 180 bytes of an event of 520, and `unpack` gives back exactly its JSON, which begins with `{` and
so never with a mark. Every program of this version reads both; which one is written is up to the ledger
(`ledger.meta.packed`), because SQL reads only JSON, and programs of before read only JSON.

The dictionary is what events have in common: their keys and usual values, trained on events with random names
and texts. A frame can be read with the dictionary that made it and with no other, so a better one takes the
next mark, and this one stays.
"""

import base64
import threading
from typing import Protocol

import zstandard

MARK = b"\x01"
# Chosen: nearly every event is smaller, and a page that is bounded by its stored bytes may not grow without
# bounds when it is unpacked.
BYTES_MAX = 4096
LEVEL = 1  # of 3 it would be 10 bytes a message less for half as much time again, of 6 for four times as much
_DICTIONARY = base64.b85decode(
    "H>5D^{4SnyClJsIG#vl`|NsAEl5DLl*}6uyW{H$ik{eLtcalk_BvUA_zyE3i^9BF_01?2Ya4!G=1YkpmfdY*Mh>s(kg<`?+90(pl"
    "(I`YA3<nqhoMC|!0000007Q)AAVK25AyF_G77T*|(Ktv7gn=Dq000000RR911ONa42mk;8Gg=}nB4T+WIwEUtZEbHNEFyDbXk~3-"
    "B04cFB6DeEWg<EvYj16BZz3!ra%F9AbY)*@WFk5uVs>J6X?kQLeS0Ewd2nSSIwEalb8}&5WiD=EZDnL4EFx)SB03^DV_`KmF=1vc"
    "Wi~Z1EjKY`VJ%@eVrDI6Gc{vjH)CcwW;r$@EFyDsa%Ev{B03^AFk~`eI506SGdDD1Ej40fGA%hXH8U+_V_`XDF*7zeWMVfWEFyMg"
    "a&u{KZX!A{EFxoQVQy|^Y$7@$cVR7UVQFq6EFxiJV{dhCbRs$;V`DKfWi>J~En_n>WGyshVK^;fGc;r^I5RXiV>D%BIb%6CA}k_f"
    "Z*F#Fa&uvHX>V>KIwCh^W@R>EG-EAeH8(XaH8M9dEjVO1H!U|gI5syhF*9N`Fft-6B5h@Jb75y?B03^8G&wXfWHK`?V_`ToEj2hf"
    "W-U26Gc+w`VmV<jHDY2iGBaT!EFxiaB03^6FfuqTFflDNFjO%yIx#RhF*YtXGcZ~rEFyAcV{dX~Wn^DrbRs$;GB7eYEif@HGcZ&!"
    "F*-3YIx#jbHZw3<A}k_ec_KO@Yj16BZz3!rV_|i3Wg<EvFgG|gIA&pHEipDXH7z%0GGZ+_WnpG5FgRmmW;tadEFx`Xb8}&5Wg<Ev"
    "HaB82VKg)|EjBVWH!U?aGdV3dH#RmcH8?XlVPj)4GBROgA}k_dbRs$;GB7eXEif@HGBi{%G&(RbIx#pdI5jm|A}k_uWn*u0WMyPu"
    "VRRxoA~G;CH!UzREiyDzF*G_bF*-3gE;uzcS|ThWVtFDuB5h@Jb7gL4WpW}cB6DMCWo=<1Ix#FFWNC6`V{~b6ZX!A&X>KAcB5!wY"
    "Uuk3_IwE3ZF*tc5EFx`lWn&^bF*q<VH#s>nH#j&oH7p`?Wo~3;aw0l=B57nIIwE9nF(ND?ZeeX@B03^VYHDa`YamoMM>#bxGa@V^"
    "aA<FCWg<EvD>yPYIW{;nF)=wgI3j&4B4clEbY*UIB075_ba`-PB03^;Wq5QVEFyGecyuB<B4KcMAZ9dqAa*okZ)74YB4clEc4cyN"
    "VRUJ4ZeM9+B03^?csXfzcyTytYa)FtB5-wcXd*fyYj16BZz6qrB6N9hWg<EvZDn(FVP|D7VPj)uaCBv4"
)


class _Compressor(Protocol):
    def compress(self, data: bytes) -> bytes: ...


class _Decompressor(Protocol):
    def decompress(self, data: bytes) -> bytes: ...


def _codec() -> tuple[_Compressor, _Decompressor]:
    """Without what a frame may say of itself and the mark says already."""
    dictionary = zstandard.ZstdCompressionDict(_DICTIONARY, dict_type=zstandard.DICT_TYPE_FULLDICT)
    dictionary.precompute_compress(level=LEVEL)
    form = zstandard.FORMAT_ZSTD1_MAGICLESS
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, format=form, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    return (
        zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters),
        zstandard.ZstdDecompressor(dict_data=dictionary, format=form),
    )


class _Codec(threading.local):
    """One for each thread: they may not be shared, and programs on the eventsourcing library have threads."""

    def __init__(self) -> None:
        self.compressor, self.decompressor = _codec()


_own = _Codec()


def pack(event: bytes) -> bytes:
    """Returns an event's JSON as a packed ledger stores it: as it is if it is large or gains nothing."""
    if len(event) > BYTES_MAX:
        return event
    packed = MARK + _own.compressor.compress(event)
    return packed if len(packed) < len(event) else event


def unpack(stored: bytes) -> bytes:
    """Returns the JSON of a stored event; what is damaged comes back as it is, and is no JSON."""
    if stored[:1] != MARK:
        return stored
    try:
        return _own.decompressor.decompress(stored[1:])
    except (zstandard.ZstdError, MemoryError):  # A damaged frame may claim any size.
        return stored
