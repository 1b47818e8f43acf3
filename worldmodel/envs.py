"""The environments under the name that they have in the wheel: `import worldmodel.envs` works in both.

In the clone the environments are in the folder `envs`. This module is replaced by that package, so that nothing is
registered twice. In the wheel the folder itself is here.
"""

import sys

import envs

sys.modules[__name__] = envs
