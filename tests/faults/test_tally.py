def test_a(tally):
    for attempt in tally("a", small=2, full=3, hits=0.5):
        with attempt:
            attempt.plan="x"
            if attempt.number==0: attempt.hit()
def test_b(tally):
    for attempt in tally("b", small=2, full=3, hits=0.5):
        with attempt:
            attempt.plan="x"
            assert attempt.number == 0
def test_c(tally):
    for attempt in tally("b", small=2, full=3, hits=0.6):
        with attempt:
            attempt.plan="x"
            if attempt.number==0: attempt.hit()
def test_d(tally):
    for attempt in tally("b", small=2, full=3, hits=0.6):
        break
