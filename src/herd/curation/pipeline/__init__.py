"""The phases of `herd curate`, one a file, in the order of the paper (section 3.1.1).

Work is split by input shard in the first phase and by partition in the others. A document belongs to the partition that the
leading bits of its id name, ids are hashes of the content, and `partitions` is configuration: so neither the number of workers
nor the order of the input's files can reach a result. A task is a pure function of its arguments that writes files and then a
small JSON file which says that they are whole; a task whose JSON file exists is not run again, which is how a killed stage
resumes.

    extract   input shard -> text, shingles, band hashes             one task a shard
    index     columns only -> newest of each URL, near-duplicates    one task
    gather    kept documents of a partition, sorted by id            one task a partition, as all that follow
    lines     copies of each line by language and bucket
    fit       what the measures need from the corpus as a whole      one task
    measure   repeated lines out; every score of every document
    decide    rules and thresholds on the scores alone
    split     held-out documents, and no trace of them in train
    write     documents, ledger, funnel
"""
