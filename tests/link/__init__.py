"""A link to test on: two network namespaces with a thin link between them, in user space over TUN."""
