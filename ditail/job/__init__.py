"""One job on any host, from what a user asks for to the hooks around its sampling.

In the order of a job: `request` (settings checked, images read, names looked up), `plan` (its samplings and the source
of each image), `source_pass` (source latents from the cache, or made), `job` (runs these, then the injection while the
host samples). `matrix` orders the jobs of an m x m matrix. A host is known as the protocols in `host` only.
"""
