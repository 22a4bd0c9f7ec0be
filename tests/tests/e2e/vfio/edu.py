"""Drives QEMU's `edu` device (docs/specs/edu.rst) through VFIO without an IOMMU, as a program of a container would.

Prints what it sees. Without mmap: registers through the region's file, memory for DMA found in the page map.
"""
import array
import fcntl
import os
import select
import struct
import sys

PAGE = 4096
BAR0, CONFIG = 0, 7
MSI = 1


def call(fd, number, argument=0):
    return fcntl.ioctl(fd, ord(";") << 8 | 100 + number, argument)


def structure(form, *values):
    return bytearray(struct.pack(form, struct.calcsize(form), *values))


address = os.environ["PCIDEVICE_EDU"]
groups = [name for name in os.listdir("/dev/vfio") if name != "vfio"]
assert groups and all(name.startswith("noiommu-") for name in groups), groups
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open("/dev/vfio/" + groups[0], os.O_RDWR)
call(group, 4, bytearray(struct.pack("i", container)))
call(container, 2, 8)
device = call(group, 6, bytearray(address.encode() + b"\0"))


def region(index):
    info = structure("IIIIQQ", 0, index, 0, 0, 0)
    call(device, 8, info)
    return struct.unpack("IIIIQQ", info)[5]


bar0, config = region(BAR0), region(CONFIG)


def read(register):
    return struct.unpack("<I", os.pread(device, 4, bar0 + register))[0]


def write(register, value):
    os.pwrite(device, struct.pack("<I", value), bar0 + register)


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


print("identified as %08x" % read(0x00))

interrupt = os.eventfd(0, os.EFD_NONBLOCK)
call(device, 10, bytearray(struct.pack("IIIIIi", 24, 4 | 32, MSI, 0, 1, interrupt)))
command = struct.unpack("<H", os.pread(device, 2, config + 4))[0]
os.pwrite(device, struct.pack("<H", command | 4), config + 4)


def wait():
    ready, _, _ = select.select([interrupt], [], [], 60)
    if not ready:
        sys.exit("no interrupt")
    os.eventfd_read(interrupt)
    status = read(0x24)
    write(0x64, status)
    print("interrupted by 0x%08x" % status)


write(0x20, 0x80)
write(0x08, 10)
wait()
print("factorial of 10 is", read(0x08))

write(0x60, 0x42)
wait()

BUFFER, COUNT = 0x40000, 1024
FROM_RAM, TO_RAM = 1 | 4, 1 | 2 | 4


def transfer(source, destination, command):
    for register, value in ((0x80, source), (0x88, destination), (0x90, COUNT), (0x98, command)):
        write(register, value)


source, source_at, source_address = page(lambda index: (index * 7 + index // 256) & 0xFF)
target, target_at, target_address = page(lambda index: 0)
transfer(source_address, BUFFER, FROM_RAM)
wait()
transfer(BUFFER, target_address, TO_RAM)
wait()
assert target[target_at:target_at + COUNT] == source[source_at:source_at + COUNT], "other bytes came back"
assert not any(target[target_at + COUNT:target_at + PAGE]), "more bytes than asked for"
print(COUNT, "bytes came back")
