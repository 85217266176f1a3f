"""Image files on the host: finding, decoding, cropping."""

import warnings


def quiet_pil() -> None:
    """Silences PIL's warnings in this process; to be called when a command or a worker starts.

    PIL remarks on odd metadata in the middle of a progress bar; what matters is raised as an error.
    """
    warnings.filterwarnings('ignore', module=r'PIL\.')
