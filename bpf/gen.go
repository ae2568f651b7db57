package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -output-stem splice -type flow_key -type flow -type flow_state -type flow_flag -type flow_strip -type flow_side -type user_key -type user -type user_flag -type name_key -type name_piece -type verdict -type counter -type event -type event_kind -type control_op -type control_result -type leg -type control Splice splice.bpf.c -- -O2 -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu
