"""Model versions: packages that load without unpickling, and a champion that only a score can replace."""

import warnings

# MLflow warns of its own chat types while it is imported, in colour, whatever the caller does.
warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
