// Package bpf holds the kernel programs and their types.
//
// usher.h is the one source of everything that kernel and user space share;
// splice.bpf.c has the programs. The generated objects and Go types are
// committed, so building Usher needs no clang: `make generate` makes them anew.
package bpf
