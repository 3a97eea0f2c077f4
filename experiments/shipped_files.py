"""Files that come with the package, known by their content: the built-in bases, and the texts of `bytes`.

Every machine adapts the same weights to the same data. `docs/w0.md` says where the files come from.
"""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "shipped"
SHA256 = {
    "bytes.safetensors": "014a4aad069c72dcb2bdf399189c245b647508bd70bc023c5b03714019e801d7",
    "digits.safetensors": "de500f19777bd4ff9f755360ff5870dd74a0fe4cf5cfa26a549f3fce30117b93",
    "bytes_train.txt": "adbdb64e3748f422288794e7c2ba2efb768c2703ce972b6c777e64fb015c2c97",
    "bytes_validation.txt": "1a6a64d0f74a79438e29bf3149d035fd075a2eda5095685b4e8045dd74f8670c",
    "bytes_test.txt": "1823f17bf13dff81bc22a347bb59674ae61685cfade937f773ca75fd7ac280e9",
}
WAY_OUT = "install the project again (in a clone, `git checkout experiments/shipped`)"


class ShippedFileError(ValueError):
    """A file of the package is not what it was when it was shipped."""


def read_shipped(name: str) -> bytes:
    """The content of a shipped file. Raises: ShippedFileError where it is missing or another one."""
    path = FOLDER / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShippedFileError(f"{path} cannot be read ({error.strerror}); {WAY_OUT}") from None
    if (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
        raise ShippedFileError(
            f"{path} is not the file that was shipped: its sha256 is {found:.12}..., not "
            f"{SHA256[name]:.12}...; {WAY_OUT}"
        )
    return content
