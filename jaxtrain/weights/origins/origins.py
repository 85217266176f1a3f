"""The table of origins and their name maps."""

from jaxtrain.weights.origins import (
    augreg,
    huggingface_text,
    huggingface_vit,
    keras,
    timm,
    torchvision,
    torchvision_vit,
)

ORIGINS = {
    'keras': (keras,),
    'torchvision': (torchvision, torchvision_vit),
    'timm': (timm,),
    'huggingface': (huggingface_vit, huggingface_text),
    'augreg': (augreg,),
}
# Origins whose map can also export.
EXPORTS = {name: modules for name, modules in ORIGINS.items() if name != 'keras'}
