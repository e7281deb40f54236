"""One file per checkpoint format of another project; a new format is such a file, and a row here."""

from perceivers.checkpoints.formats import deepmind, krasserm, perceiver_pytorch, resamplers, transformers

# In the order in which they are tried.
FORMATS = (
    perceiver_pytorch.FORMAT,
    krasserm.FILE,
    krasserm.FOLDER,
    deepmind.FORMAT,
    resamplers.FILE,
    resamplers.FOLDER,
    transformers.FORMAT,
)
