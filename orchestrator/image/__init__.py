"""What a guest boots: a kernel, and an initramfs with busybox, kernel modules and our agent."""
