"""A PCI function through VFIO without an IOMMU, as a program of a container would drive it.

Without mmap: registers through the region's file, memory for DMA found in the page map.
"""
import array
import fcntl
import os
import select
import struct
import sys

PAGE = 4096
BAR0, CONFIG = 0, 7
INTX, MSI = 0, 1


def call(fd, number, argument=0):
    return fcntl.ioctl(fd, ord(";") << 8 | 100 + number, argument)


class Function:
    """The one function this container was given; PCIDEVICE_TEST says where it is."""

    def __init__(self):
        groups = [name for name in os.listdir("/dev/vfio") if name != "vfio"]
        assert len(groups) == 1 and groups[0].startswith("noiommu-"), groups
        self.container = os.open("/dev/vfio/vfio", os.O_RDWR)
        self.group = os.open("/dev/vfio/" + groups[0], os.O_RDWR)
        call(self.group, 4, bytearray(struct.pack("i", self.container)))
        call(self.container, 2, 8)
        address = os.environ["PCIDEVICE_TEST"].encode()
        self.device = call(self.group, 6, bytearray(address + b"\0"))
        self.bar0, self.config = self.region(BAR0), self.region(CONFIG)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)

    def region(self, index):
        info = bytearray(struct.pack("IIIIQQ", 32, 0, index, 0, 0, 0))
        call(self.device, 8, info)
        return struct.unpack("IIIIQQ", info)[5]

    def read(self, register):
        return struct.unpack("<I", os.pread(self.device, 4, self.bar0 + register))[0]

    def write(self, register, value):
        os.pwrite(self.device, struct.pack("<I", value), self.bar0 + register)

    def connect(self, kind):
        call(self.device, 10, bytearray(struct.pack("IIIIIi", 24, 4 | 32, kind, 0, 1, self.event)))

    def unmask(self, kind):
        call(self.device, 10, bytearray(struct.pack("IIIII", 20, 1 | 16, kind, 0, 1)))

    def master(self):
        command = struct.unpack("<H", os.pread(self.device, 2, self.config + 4))[0]
        os.pwrite(self.device, struct.pack("<H", command | 4), self.config + 4)

    def wait(self):
        ready, _, _ = select.select([self.event], [], [], 60)
        if not ready:
            sys.exit("no interrupt")
        os.eventfd_read(self.event)


def physical(pointer):
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        entry = struct.unpack("<Q", os.pread(pages.fileno(), 8, pointer // PAGE * 8))[0]
    assert entry >> 63, "the page is not in memory"
    assert entry & (1 << 55) - 1, "the page map tells nothing"
    return (entry & (1 << 55) - 1) * PAGE


def page(fill):
    """A page of our own: the array it lies in, its place in it, its physical address."""
    memory = array.array("B", bytes(1 << 20))
    start = memory.buffer_info()[0]
    offset = -start % PAGE
    for index in range(PAGE):
        memory[offset + index] = fill(index)
    return memory, offset, physical(start + offset)
