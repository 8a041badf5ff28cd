"""The commands of `edm2`, one file each: parse, call one library function, print."""
