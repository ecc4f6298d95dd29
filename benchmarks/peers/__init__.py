"""One work on pyrepl and on what a user would pick instead, in turn, with real programs.

    python -m benchmarks.peers --dir DIR P1 P2 P3 P5
    python -m benchmarks.peers --dir DIR memory
    python -m benchmarks.peers --dir DIR cli

Rooms: ``processes`` starts and ends programs and reads what they use, ``load`` is fio, ``rigs`` are the systems under
it, ``works`` says what is run and when it counts, ``report`` prints. What a figure means stands in ``works``.
"""
