"""How the words of `vidssl VERB …` are read, refused and explained; what the verbs do lies in the folders beside this one."""
