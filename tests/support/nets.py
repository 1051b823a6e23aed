"""Small networks of every topology, each with the channel groups it has to fall into."""

from tests.support.topologies import classic, gating, grouped, modes, movement, parameters
from tests.support.topologies.base import Net

NETS: tuple[Net, ...] = (
    *classic.NETS,
    *parameters.NETS,
    *grouped.NETS,
    *gating.NETS,
    *movement.NETS,
    *modes.NETS,
)

BY_NAME = {net.name: net for net in NETS}
