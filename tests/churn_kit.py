"""The churn kit's names in one place; docs/churn_kit.md says how to use them."""

from tests.churn.at_tokens import AtTokens
from tests.churn.fleet import Fleet
from tests.churn.links import Link, Links
from tests.churn.other_version import other_version
from tests.churn.way import Conditions
from tests.tcp_proxy import TcpProxy

__all__ = ["AtTokens", "Conditions", "Fleet", "Link", "Links", "TcpProxy", "other_version"]
