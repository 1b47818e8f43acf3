"""The environments under the name that they have in the wheel: `import worldmodel.envs` works in both.

In the clone they are the folder `envs`, and this is that very package, so that nothing is registered twice. The wheel
has the folder itself in this place.
"""

import sys

import envs

sys.modules[__name__] = envs
