"""The words a labeller of chest reports goes by: findings, negations, hedges, ends of a clause.

Regular expressions on lower-case text, matched as whole words. That a cue has a scope which ends
at certain words is NegEx's idea (Chapman 2001), the past as one more kind of cue ConText's (Harkema
2009); the lists are our own, written from the development half of the OpenI reports
(Demner-Fushman 2016).
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ANATOMY", "CUES", "FINDINGS", "LOOKALIKES", "NORMAL_SIGNS", "OTHER_ABNORMAL"]

_GRADE = r"(?:(?:\w+ly|mild|moderate|marked|borderline|slight|stable) )*"
_SILHOUETTE = (
    r"(?:cardio(?:mediastinal|pericardial) |cardiac |heart )(?:silhouette|shadow|contours?)"
)
_HEART = rf"(?:heart(?: size)?|cardiac size|{_SILHOUETTE})"
_IS = r"(?:is|are|was|were|remains?|appears?)"
_NORMAL = r"(?:normal|unremarkable|within (?:the )?(?:\w+ )?normal|not enlarged)"

FINDINGS: Mapping[str, str] = {
    "Atelectasis": r"\w*atelecta\w*|(?:lung|lobe|lobar|partial|complete|volume) collapse"
    r"|collapse of the \w+ (?:\w+ )?(?:lung|lobe)|collapsed (?:\w+ ){0,3}(?:lung|lobe)",
    "Cardiomegaly": r"cardiomegaly|(?:cardiac|heart) enlargement"
    rf"|enlarge(?:d|ment of the) (?:cardiac|heart|{_SILHOUETTE})"
    rf"|{_HEART} (?:{_IS} )?{_GRADE}(?:heart )?(?:enlarged|large)"
    rf"|{_HEART} .{{0,30}}or {_GRADE}enlarged|borderline (?:in )?(?:heart|cardiac) size",
    "Effusion": r"\w*effusions?|pleural fluid|fluid collections?|hydropneumothora\w+|hemothorax",
    "Infiltration": r"infiltrat\w*",
    "Mass": r"mass(?:es)?|masslike",
    "Nodule": r"(?:micro)?nodules?",
    "Pneumonia": r"\w*pneumonias?|pneumonitis",
    "Pneumothorax": r"\w*pneumothora(?:x|ces)",
    "Consolidation": r"consolidat\w*",
    "Edema": r"o?edema",
    "Emphysema": r"emphysem\w*",
    "Fibrosis": r"fibros[ie]s|fibrotic",
    "Pleural_Thickening": r"pleural(?:[ -]\w+){0,2} thickening|thickening of the pleura"
    r"|(?:bi)?apical (?:pleural )?cap(?:ping)?|thickened pleura"
    r"|thickening (?:in|of) the (?:\w+ )?fissures?",
    "Hernia": r"hernias?",
}

# What holds the word of a finding and is another thing.
LOOKALIKES = (
    r"pericardial effusion|joint effusion|soft tissue edema|subcutaneous emphysema"
    r"|cystic fibrosis|non-?consolidat\w*|mass effect"
)

_IN_THE_LUNG = ("Atelectasis", "Infiltration", "Mass", "Nodule", "Pneumonia", "Consolidation")

# Words of what is normal, and the findings they deny.
NORMAL_SIGNS: Mapping[str, tuple[str, ...]] = {
    rf"{_HEART}(?: and [\w ]{{1,40}}?)? (?:{_IS} )?(?:{_GRADE})?{_NORMAL}"
    rf"|normal {_HEART}": ("Cardiomegaly",),
    rf"(?:the |both |^)lungs (?:{_IS} )?(?:(?!otherwise)\w+ )?(?:clear|{_NORMAL})(?! of| from)"
    r"|(?<!otherwise )clear lungs": (
        *_IN_THE_LUNG,
        "Edema",
    ),
    rf"costophrenic (?:angles|sulci|xxxx) (?:{_IS} )?(?:sharp|clear)": ("Effusion",),
    rf"pleura(?:l spaces?|l surfaces?)? (?:{_IS} )?(?:clear|{_NORMAL})": (
        "Effusion",
        "Pleural_Thickening",
    ),
}

# What a normal chest does not have, and no finding above covers.
OTHER_ABNORMAL = (
    r"opaci\w+|densit\w+|scar\w*|granuloma\w*|calcif\w+|degenerat\w+|fractures?|tortuo\w+"
    r"|ectasia|ectatic|atheroscl\w+|hyper(?:inflat|expan|lucen)\w+|hypo(?:inflat|ventilat)\w+"
    r"|low lung volumes?|elevat\w+|eventration|osteophyt\w+|spondyl\w+|\w*scoliosis|spur\w*"
    r"|kypho\w+|sternotomy|clips?|pacemaker|catheters?|tubes?|surgical|post-?surgical|prominen\w+"
    r"|thicken\w+|blunt\w+|airspace disease|air space disease|markings|congestion|cephalization"
    r"|\w*adenopathy|deformit\w+|arthr\w+|copd|bronch\w+|prosthe\w+|stents?|lesions?|cysts?|bullae?"
    r"|sclero\w+|hardware|crowding|enlarg\w+|flatten\w+|demineraliz\w+|osteop\w+|sarcoidosis"
    r"|cabg|overload|failure"
)

# Where in the chest a statement is about.
ANATOMY: Mapping[str, str] = {
    "left": r"left(?:-sided)?|bilateral(?:ly)?|both",
    "right": r"right(?:-sided)?|bilateral(?:ly)?|both",
    "upper": r"upper|(?:bi)?apical|apex|apices",
    "middle": r"mid(?:dle)?|midlung|perihilar|lingul(?:a|ar)",
    "lower": r"lower|(?:bi)?basilar|(?:bi)?basal|bases?|costophrenic",
    "lung": r"lungs?|lob(?:e|es|ar)|pulmonary|parenchym\w+",
    "pleura": r"pleura|pleural|hemithorax|fissures?|costophrenic",
    "heart": r"heart|cardiac|cardio\w+",
    "mediastinum": r"mediastin\w+|\w*mediastinal|hil(?:um|a|ar)|aort(?:a|ic)|trache(?:a|al)",
    "bones": r"ribs?|spine|vertebra\w*|osseous|bon(?:y|es?)|clavic\w+",
}

# Kind of cue to its words. Where two kinds begin at the same place, the earlier one wins.
CUES: Mapping[str, str] = {
    # Denies something else than the finding: no cue, but nothing in it is one either.
    "none": r"(?:no|without)(?: (?:significant|interval|acute|appreciable|definite|large)){0,2}"
    r" (?:change|changes(?! of)|increase|decrease|progression|enlargement)|not only"
    r"|(?:near|partial|incomplete)\w*[ -](?:complete )?resol\w+"
    r"|not (?:significantly |necessarily )?(?:changed|all)|considering"
    r"|(?:(?:is|are|was|were) )?not (?:as )?(?:well|fully|optimally) \w+",
    # The hedged thing follows ...
    "hedge": r"(?:can ?not|could not|difficult to|unable to)(?: completely| entirely)?"
    r" (?:exclude|rule out)|may(?:be)?|might|could|possibl[ey]|probabl[ey]|possibility of|likely"
    r"|suggest\w*|suspici\w+|suspect|concern\w*|questionable|question(?: of)?|consider"
    r"|(?:to|and) (?:exclude|rule[ -]out)|rule[ -]out|(?:evaluat\w+|correlat\w+|assess\w*) .{0,20}"
    r"for|differential|potential(?:ly)?|if clinically|to (?:identify|evaluate)|favor\w*",
    # ... or comes before.
    "hedged": r"(?:(?:is|are) )?(?:not|cannot be|can ?not be|could not be|difficult to)(?: be)?"
    r"(?: completely| entirely)? (?:excluded?|ruled out)|would be a consideration"
    r"|(?:is|are) (?:also )?(?:possible|likely|probable|a consideration|considered)"
    r"|not (?:entirely |completely )?excluded",
    # Both.
    "hedges": r"versus|vs|suspected|questioned",
    # What comes before is denied ...
    "denied": r"(?:(?:is|are|was|were|has been|have been) )?(?:not|no longer)"
    r"(?: \w+){0,2} (?:seen|identified|present|visuali[sz]ed|visible|evident|demonstrated|noted)"
    r"|(?:has|have|had) (?:\w+ )?(?:resolved|cleared)|(?:is|are) (?:absent|resolved)|ruled out"
    r"|(?:is|are) (?:normal|unremarkable)|excluded",
    # ... or what follows.
    "denies": r"no|not|without|(?:clear|free|negative)(?: of| for| from)|absence of|lack of"
    r"|den(?:y|ies)|resolved|resolution of|clearing of|cleared|rather than|never|neither|nor",
    "end": r"but|however|although|though|except(?: for)?|(?:aside|apart) from|other than|yet"
    r"|there (?:is|are|has|have)|otherwise|[:;]",
    # Ends what is denied, unless a list goes on to its "or".
    "turn": r"(?:and|with|,) (?:an?|mild|minimal|small|moderate|stable|unchanged|persistent)"
    r"(?![^,]*, or )",
    "past": r"history of|previous(?:ly)?(?: seen)?|status post|prior",
}
