"""Intel's 82540EM, which has only a pin: interrupts it is told to raise (8254x manual §13.4.17 to §13.4.21)."""
from function import INTX, Function

CAUSE, SET, ENABLE = 0xC0, 0xC8, 0xD0
LINK = 1 << 2

network = Function()
network.connect(INTX)
network.write(ENABLE, LINK)
for number in range(3):
    network.write(SET, LINK)
    network.wait()
    # Reading takes the pin back; until it is unmasked it stays silent.
    print("interrupted by 0x%x" % (network.read(CAUSE) & LINK))
    network.unmask(INTX)
