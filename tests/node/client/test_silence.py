from node.client.silence import MIN_SIGN_S, MIN_SILENCE_S, Silence


def test_short_steps_leave_the_least_bounds():
    silence = Silence(0.0)
    silence.begin(10.0)
    silence.answered(10.01, alone=True)
    assert (silence.bound_s, silence.sign_s) == (MIN_SILENCE_S, MIN_SIGN_S)


def test_long_steps_are_given_two_and_three_of_their_time():
    silence = Silence(0.0)
    silence.begin(10.0)
    silence.answered(14.0, alone=True)
    assert (silence.bound_s, silence.sign_s) == (8.0, 12.0)


def test_steps_that_were_on_the_way_together_say_nothing_of_one():
    silence = Silence(0.0)
    silence.begin(10.0)
    silence.answered(14.0, alone=False)
    assert silence.bound_s == MIN_SILENCE_S


def test_the_average_follows_the_last_few_steps():
    silence = Silence(0.0)
    for start_s in range(0, 400, 4):
        silence.begin(start_s)
        silence.answered(start_s + (1.0 if start_s < 200 else 2.0), alone=True)
    assert 3.9 < silence.bound_s <= 4.0


def test_a_repair_ends_the_silence_and_not_the_wait():
    silence = Silence(0.0)
    silence.begin(10.0)
    silence.repaired(15.0)
    assert (silence.lasts_s(16.0), silence.waited_s(16.0)) == (1.0, 6.0)
