"""Where `log …` reads a log: the files of a data folder, or a running service.

source       what both can answer
folder       a data folder, offline
service      a service, over HTTP
choice       which of them
"""
