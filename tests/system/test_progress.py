from sedd_jax.system.progress import progress


def test_without_a_terminal_there_are_whole_lines(capsys):
    with progress("Rows", unit="row") as advance:
        for done in (1, 2, 4):
            advance(done, 4)
    (line,) = capsys.readouterr().err.splitlines()  # the others came too soon after
    assert line.startswith("Rows: 100%")
    assert "4/4 [00:00<00:00" in line
