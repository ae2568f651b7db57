// Package config reads usher.toml strictly.
//
// One pass goes over the whole file and reports every problem at once, each with the file, the
// line, the dotted key and what would be right:
//
//	usher.toml:12: director.user_expire: 5s is too low, at least 10s
//
// The way of a value:
//
//	TOML ─ go-toml ─► tree ─┐
//	     ─ positions ─► key → line ─┤─ bind ─► Config ─ environment ─► check ─► *Config or Problems
//
// Parse is pure: it opens no file and resolves no name, so that a configuration can be checked
// anywhere. What depends on the machine is asked for separately: Missing (files), Hosts (names).
// What a valid file asks for but this version cannot do yet is named by Unbuilt.
//
// The environment variable USHER_<TABLE>_<KEY> overrides a single value of a single table
// (USHER_DIRECTOR_NAME, USHER_STEER_MODE). One that names no such key is a problem, too;
// variables which name no table (USHER_SOCKET) belong to somebody else and are left alone.
package config
