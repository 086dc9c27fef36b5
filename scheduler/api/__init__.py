"""The one door for writers and readers: HTTP on a unix socket; on TCP (loopback) status and metrics only."""
