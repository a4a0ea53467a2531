"""One job on any host, from the user's request to the hooks around its sampling.

In the order of a job: `request` (settings checked, images read, names looked up), `plan` (its samplings and the source
of each image), `source_pass` (source latents from the cache, or computed), `job` (runs these, then the injection while
the host samples). `matrix` orders the jobs of an m x m matrix. Hosts implement the protocols in `host`.
"""
