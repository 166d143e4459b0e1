"""moorage: any CSI storage driver on any Linux host, through the volumes HTTP API that Nomad's tools speak."""

__version__ = "0.1.0.dev0"
