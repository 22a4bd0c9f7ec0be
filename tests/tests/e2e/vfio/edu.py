"""QEMU's `edu` device (docs/specs/edu.rst): a calculation, interrupts, a transfer there and back."""
from function import MSI, PAGE, Function, page

edu = Function()
print("identified as %08x" % edu.read(0x00))
edu.connect(MSI)
edu.master()


def wait():
    edu.wait()
    status = edu.read(0x24)
    edu.write(0x64, status)
    print("interrupted by 0x%08x" % status)


edu.write(0x20, 0x80)
edu.write(0x08, 10)
wait()
print("factorial of 10 is", edu.read(0x08))

edu.write(0x60, 0x42)
wait()

BUFFER, COUNT = 0x40000, 1024
FROM_RAM, TO_RAM = 1 | 4, 1 | 2 | 4


def transfer(source, destination, command):
    for register, value in ((0x80, source), (0x88, destination), (0x90, COUNT), (0x98, command)):
        edu.write(register, value)


source, source_at, source_address = page(lambda index: (index * 7 + index // 256) & 0xFF)
target, target_at, target_address = page(lambda index: 0)
transfer(source_address, BUFFER, FROM_RAM)
wait()
transfer(BUFFER, target_address, TO_RAM)
wait()
assert target[target_at:target_at + COUNT] == source[source_at:source_at + COUNT], "other bytes came back"
assert not any(target[target_at + COUNT:target_at + PAGE]), "more bytes than asked for"
print(COUNT, "bytes came back")
