"""Training: what needs torch, and nothing that serving needs (extra ``train``)."""
