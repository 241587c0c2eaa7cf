"""VMs by QEMU, with KVM where that works and by emulation where it does not."""
