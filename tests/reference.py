"""Slow, obvious twins of fast algorithms, for property tests that compare the two."""


def kept_by_top_p(probabilities, top_p):
    """Token ids that top-p sampling keeps: most probable first until their sum reaches `top_p`."""
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: (-probabilities[t], t)):
        kept.append(token)
        total += probabilities[token]
        if total >= top_p:
            break
    return kept


def drawn_token(probabilities, top_p, uniform):
    """The token whose share of the kept probability holds the number `uniform` in [0, 1)."""
    kept = kept_by_top_p(probabilities, top_p)
    rest = uniform * sum(probabilities[token] for token in kept)
    for token in kept:
        rest -= probabilities[token]
        if rest < 0:
            return token
    return kept[-1]
