"""The county's end: the reference receiver of the contract."""
