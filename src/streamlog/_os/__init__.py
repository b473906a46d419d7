"""The operating system: files, mapped words, locks, waking, clocks.  Nothing above this folder calls it directly."""
