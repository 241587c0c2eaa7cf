"""The network of one cluster, in user space: no root, no interface of this host, no open port."""
